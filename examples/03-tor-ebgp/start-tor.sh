#!/bin/sh
# The router's main process: start-tor.sh bird|frr|gobgp|openbgpd|margay
#
# All have the same configuration, each in its own words: AS 64512, one eBGP neighbour per host and address family,
# the pools accepted and nothing else, a default route announced to every host (not by margay, which has none to give).
set -eu
here=$(dirname "$0")

case "${1:-bird}" in
bird)
    mkdir -p /run/bird
    exec bird -f -c "$here/tor-bird.conf" -s /run/bird/bird.ctl
    ;;
frr)
    # FRR wants to change to a user of its own, which a lab raised by an ordinary user does not have. Root may stay
    # root when it is in the group of FRR's shell; /etc is the lab's own, so that is easily arranged.
    mkdir -p /run/frr /tmp/frr
    sed -i 's/^frrvty:.*/frrvty:x:0:root/' /etc/group
    cp "$here/tor-frr.conf" /tmp/frr/frr.conf
    zebra=/usr/lib/frr/zebra bgpd=/usr/lib/frr/bgpd
    me="-u root -g root --vty_socket /run/frr"
    # shellcheck disable=SC2086
    $zebra $me -d -f /tmp/frr/frr.conf -i /run/frr/zebra.pid -z /run/frr/zserv.api --log file:/run/frr/zebra.log
    # shellcheck disable=SC2086
    exec $bgpd $me -S -f /tmp/frr/frr.conf -i /run/frr/bgpd.pid -z /run/frr/zserv.api --log stdout
    ;;
gobgp)
    sh "$here/rib-to-fib.sh" gobgp &
    # GoBGP has no word for this in its file.
    (
        until gobgp global rib add -a ipv4 0.0.0.0/0 && gobgp global rib add -a ipv6 ::/0; do sleep 1; done
    ) >/dev/null 2>&1 &
    exec gobgpd -f "$here/tor-gobgp.toml" --api-hosts 127.0.0.1:50051
    ;;
openbgpd)
    # The package's bgpd; FRR has a program of the same name elsewhere.
    mkdir -p /run/openbgpd /tmp/openbgpd
    cp "$here/tor-openbgpd.conf" /tmp/openbgpd/bgpd.conf
    chmod 0600 /tmp/openbgpd/bgpd.conf
    sh "$here/rib-to-fib.sh" openbgpd &
    exec /usr/sbin/bgpd -d -f /tmp/openbgpd/bgpd.conf
    ;;
margay)
    export MARGAY_DATASTORE=sqlite:///run/margay/router.db
    mkdir -p /run/margay
    margay apply -f "$here/tor-margay.yaml"
    exec margay node run --name tor --ip 10.0.1.1/30 --ip6 fd00:0:1::1/64
    ;;
*)
    echo "start-tor.sh: no router is called '$1': bird, frr, gobgp, openbgpd or margay" >&2
    exit 2
    ;;
esac
