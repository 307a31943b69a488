# shellcheck shell=bash disable=SC2034  # the other parts use these names
# Names, places, and what handles processes. Everything that could meet another cluster on this machine has a name or
# an address of its own here: the network namespace, the addresses, the cgroup and the state folder.

state=${HEADWATER_CLUSTER_DIR:-/var/lib/headwater-e2e}
bin=$state/bin pki=$state/pki conf=$state/conf logs=$state/logs run=$state/run

netns=headwater-e2e node=e2e-node cgroup=headwater-e2e
host_link=hwe2e-host node_link=hwe2e-node
host_ip=198.18.0.5 node_ip=198.18.0.6
pods=10.245.0.0/16 real_pods=10.245.0.0/17 simulated_pods=10.245.128.0/17
services=10.97.0.0/16 api_service_ip=10.97.0.1
server=https://$node_ip:6443

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

admin() { "$bin/kubectl" --kubeconfig "$state/kubeconfig" "$@"; }

inside() { nsenter --net="/run/netns/$netns" "$@"; }

# One command at a time for a state folder. The kernel lets the lock go when this process ends; what it starts does not
# inherit it.
alone() {
    mkdir -p "$state" || die "cannot make $state; set HEADWATER_CLUSTER_DIR"
    exec 9>"$state/lock"
    flock 9
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || die "$what: not there in time; logs are in $logs"
        sleep 0.2
    done
}

# start NAME COMMAND...: in the namespace, detached, with a log and a pid file.
start() {
    local name=$1
    shift
    setsid nsenter --net="/run/netns/$netns" "$@" >"$logs/$name.log" 2>&1 </dev/null 9>&- &
    echo $! >"$run/$name.pid"
}

# stop NAME: asks, waits 5 s, kills. Only a process of our namespace is touched: a pid may be somebody else's by now.
stop() {
    local file=$run/$1.pid pid
    [[ -f $file ]] || return 0
    pid=$(<"$file")
    rm -f "$file"
    ours "$pid" || return 0
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do
        ours "$pid" || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

ours() { [[ -e /run/netns/$netns && /proc/$1/ns/net -ef /run/netns/$netns ]]; }
