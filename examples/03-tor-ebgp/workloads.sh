#!/bin/sh
# Attaches this example's workloads to the host it runs on: margay lab exec host1 -- sh /lab/workloads.sh
#
# A workload is a network namespace; here `ip netns` makes it, elsewhere a container engine would.
set -eu
workload() { # name, role
    ip netns add "$1"
    margay workload attach "$1" --netns "/run/netns/$1" --label "role=$2"
}
case "$(hostname)" in
host1) workload web1 web && workload app1 app ;;
host2) workload web2 web && workload db1 db ;;
host3) workload app2 app && workload guest1 guest ;;
*) echo "workloads.sh: run it on host1, host2 or host3" >&2 && exit 2 ;;
esac
