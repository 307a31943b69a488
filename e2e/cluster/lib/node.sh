# shellcheck shell=bash disable=SC2154  # common.sh has the names
# The node: containerd and runc, kubelet, kube-proxy, DNS for services; and nodes that are only simulated.

start_node() {
    start_containerd
    make_cgroup
    cat >"$conf/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet.crt
tlsPrivateKeyFile: $pki/kubelet.key
containerRuntimeEndpoint: unix://$run/containerd.sock
cgroupDriver: cgroupfs
# A kubelet removes the cgroups of pods that it does not know, another cluster's too, if they are under its root.
cgroupRoot: /$cgroup
failCgroupV1: false
failSwapOn: false
clusterDNS: [$node_ip]
clusterDomain: cluster.local
resolvConf: $conf/resolv.conf
maxPods: 200
podLogsDir: $logs/pods
# Loaded images cannot be pulled again, and the machine's disk is not the tests' matter.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 200Mi, nodefs.available: 1%, imagefs.available: 1%}
YAML
    : >"$conf/resolv.conf"
    mkdir -p "$logs/pods"
    start kubelet "$bin/kubelet" --config="$conf/kubelet.yaml" --kubeconfig="$conf/kubelet.kubeconfig" \
        --hostname-override="$node" --node-ip="$node_ip" --root-dir="$state/kubelet"
    cat >"$conf/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $conf/proxy.kubeconfig}
clusterCIDR: $pods
hostnameOverride: $node
mode: iptables
conntrack: {maxPerCore: 0, min: 0}
YAML
    start kube-proxy "$bin/kube-proxy" --config="$conf/proxy.yaml"
    cat >"$conf/Corefile" <<COREFILE
.:53 {
    bind $node_ip
    errors
    kubernetes cluster.local {
        kubeconfig $conf/dns.kubeconfig
    }
    cache 2
}
COREFILE
    start coredns "$bin/coredns" -conf "$conf/Corefile"
    wait_for 90 "node $node" admin wait --for=condition=Ready "node/$node" --timeout=1s
}

start_containerd() {
    mkdir -p "$conf/cni"
    cat >"$conf/containerd.toml" <<TOML
version = 2
root = "$state/containerd"
state = "$run/containerd"
[grpc]
  address = "$run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/headwater-pause:1"
  # Without the capability to lower it, a container could not start.
  restrict_oom_score_adj = true
  # Under our state, where they are found when the cluster goes down.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$conf/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
TOML
    # ptp, not a bridge: between pods everything is routed, so that answers of services come back through kube-proxy's
    # rules without the kernel's bridge filter.
    cat >"$conf/cni/10-headwater.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "headwater-e2e",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local",
        "dataDir": "$run/ipam",
        "ranges": [[{"subnet": "$real_pods"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    }
  ]
}
JSON
    start containerd containerd --config "$conf/containerd.toml"
    wait_for 30 containerd images version
    python "$here/archive.py" localhost/headwater-pause:1 "$bin/pause" "$run/pause.tar"
    load "$run/pause.tar"
}

# cgroup v2 needs one folder, v1 one in each hierarchy, whose cpuset starts out empty and then takes no process.
make_cgroup() {
    local folder file
    if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
        mkdir -p "/sys/fs/cgroup/$cgroup"
        return
    fi
    for folder in /sys/fs/cgroup/*/; do
        folder=$(readlink -f "$folder")
        mkdir -p "$folder/$cgroup"
        for file in cpuset.cpus cpuset.mems; do
            [[ ! -f $folder/$file ]] || cat "$folder/$file" >"$folder/$cgroup/$file"
        done
    done
}

remove_cgroup() {
    find /sys/fs/cgroup/*/"$cgroup" /sys/fs/cgroup/"$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
}

images() { ctr --address "$run/containerd.sock" --namespace k8s.io "$@"; }

load() {
    local file
    (($#)) || die "usage: cluster load IMAGE.tar..."
    [[ -S $run/containerd.sock ]] || die "the cluster has no node: cluster up"
    for file; do
        images images import "$file" >/dev/null
    done
}

# Images are loaded as NAME:1, each time under the same name.
tag() {
    local image tag=${1:-}
    [[ $tag =~ ^[0-9a-f]+$ && $tag != 1 ]] || die "usage: cluster tag TAG, of digits and the letters a to f"
    for image in $(images images ls -q | grep '^localhost/headwater-[a-z0-9-]*:[0-9a-f]*$'); do
        case $image in
            localhost/headwater-pause:*) ;;
            *:1) images images tag --force "$image" "${image%:*}:$tag" >/dev/null ;;
            *:"$tag") ;;
            *) images images rm "$image" >/dev/null ;;
        esac
    done
}

stop_node() {
    local task mount
    stop kubelet
    # A pod's processes are children of its shim, not ours.
    if [[ -S $run/containerd.sock ]]; then
        for task in $(images tasks ls -q 2>/dev/null); do
            images tasks kill -s KILL "$task" >/dev/null 2>&1 || true
        done
    fi
    for task in kube-proxy coredns containerd; do
        stop "$task"
    done
    awk -v inside="$state/" 'index($2, inside) == 1 {print $2}' /proc/mounts | sort -r | while read -r mount; do
        umount -l "$mount" 2>/dev/null || true
    done
    remove_cgroup
}

# start_simulation NODES GPUS: with no node, kwok is there for those that a test makes. The taint keeps pods away that do
# not ask for a simulated node. Leases are the nodes' sign of life: without them kwok gives none in the 50 seconds after which
# Kubernetes takes a node for lost, and its pods for unready.
start_simulation() {
    local count=$1 gpus=$2 i
    [[ -f $run/kwok.pid ]] || start kwok "$bin/kwok" --kubeconfig="$state/kubeconfig" --cidr="${simulated_pods/.0\//.1\/}" \
        --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake --node-lease-duration-seconds=40
    for ((i = 0; i < count; i++)); do
        cat <<YAML
apiVersion: v1
kind: Node
metadata:
  name: simulated-$i
  annotations: {kwok.x-k8s.io/node: fake}
  labels: {kubernetes.io/os: linux, kubernetes.io/arch: amd64, kubernetes.io/hostname: simulated-$i, type: kwok}
spec: {taints: [{key: kwok.x-k8s.io/node, value: fake, effect: NoSchedule}]}
status:
  capacity: &room {cpu: "64", memory: 1Ti, pods: "110", ephemeral-storage: 2Ti, nvidia.com/gpu: "$gpus"}
  allocatable: *room
---
YAML
    done | if ((count)); then admin apply -f - >/dev/null; fi
    ((count)) || return 0
    wait_for 60 "simulated nodes" admin wait --for=condition=Ready node --selector type=kwok --timeout=1s
}
