#!/bin/sh
# Succeeds when the router answers: tor-health.sh bird|frr|gobgp|openbgpd|margay
case "${1:-bird}" in
bird) birdc -s /run/bird/bird.ctl show status | grep -q 'up and running' ;;
frr) vtysh --vty_socket /run/frr -c 'show bgp summary json' | grep -q 64512 ;;
gobgp) gobgp global | grep -q 64512 ;;
openbgpd) bgpctl show summary | grep -q 65001 ;;
margay) margay bgp summary | grep -q 'local AS 64512' ;;
*) exit 2 ;;
esac
