#!/bin/sh
# GoBGP and OpenBGPD (on Linux) keep their routes to themselves. For the lab this hands them to the kernel, once a
# second, as protocol 186 ("bgp" in rt_protos): rib-to-fib.sh gobgp|openbgpd
set -u

routes() { # prefix and next hop, one pair a line; $1 is the daemon, $2 the family
    case "$1" in
    gobgp)
        gobgp global rib -a "ipv$2" -j 2>/dev/null | jq -r '
            .[] | map(select(.best)) | .[0] // empty
            | [.nlri.prefix, (.attrs[] | (select(.type == 3) | .nexthop), (select(.type == 14) | .nexthop))] | @tsv'
        ;;
    openbgpd)
        bgpctl -j show rib best 2>/dev/null | jq -r --arg family "$2" '
            .rib[]? | select((.prefix | contains(":")) == ($family == "6"))
            | [.prefix, .exit_nexthop] | @tsv'
        ;;
    esac
}

while sleep 1; do
    for family in 4 6; do
        wanted=$(routes "$1" "$family" | awk '$2 != "0.0.0.0" && $2 != "::" && $2 != ""' | sort -u)
        present=$(ip "-$family" route show proto bgp | awk '{print $1}' | sed '/\//!s|$|/'"$([ "$family" = 4 ] && echo 32 || echo 128)"'|' | sort -u)
        printf '%s\n' "$wanted" | while read -r prefix hop; do
            [ -n "$prefix" ] && ip "-$family" route replace "$prefix" via "$hop" proto bgp
        done
        printf '%s\n' "$present" | while read -r prefix; do
            [ -n "$prefix" ] || continue
            printf '%s\n' "$wanted" | grep -q "^$prefix	" || ip "-$family" route del "$prefix" proto bgp
        done
    done
done
