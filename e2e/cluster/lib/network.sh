# shellcheck shell=bash disable=SC2154  # common.sh has the names
# The node is a network namespace with one cable to this machine. It has no default route, so that nothing of the
# cluster can reach beyond this machine, whatever this machine forwards.

make_network() {
    ip netns add "$netns"
    ip link add "$host_link" type veth peer name "$node_link" netns "$netns"
    ip addr add "$host_ip/30" dev "$host_link"
    ip link set "$host_link" up
    inside ip link set lo up
    inside ip addr add "$node_ip/30" dev "$node_link"
    inside ip link set "$node_link" up
    # kube-proxy rewrites services before they would go this way; without any way they are refused too early.
    inside ip route add "$services" via "$host_ip"
    # Nobody answers for simulated pods: say so at once, instead of letting callers wait.
    inside ip route add unreachable "$simulated_pods"
    inside sysctl -qw net.ipv4.ip_forward=1
    ip route replace "$pods" via "$node_ip"
    ip route replace "$services" via "$node_ip"
}

remove_network() {
    local pid
    for pid in $(ip netns pids "$netns" 2>/dev/null); do
        kill -9 "$pid" 2>/dev/null || true
    done
    ip link del "$host_link" 2>/dev/null || true
    ip netns del "$netns" 2>/dev/null || true
}
