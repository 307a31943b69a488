# shellcheck shell=bash disable=SC2154  # common.sh has the names
# etcd, the API server and the two loops over it. Pod security admission and RBAC are on, as on any real cluster.

start_control_plane() {
    # Nothing here outlives `down`, so etcd need not wait for the disk.
    start etcd "$bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster default=http://127.0.0.1:2380
    start kube-apiserver "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
        --secure-port=6443 --advertise-address="$node_ip" --service-cluster-ip-range="$services" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --service-account-issuer=https://kubernetes.default.svc \
        --service-account-key-file="$pki/service-account.key" \
        --service-account-signing-key-file="$pki/service-account.key" \
        --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
        --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key"
    wait_for 120 kube-apiserver admin get --raw /readyz
    admin apply -f - >/dev/null <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: headwater-kubelet-clients}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:kubelet-api-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "headwater:kubelet-clients"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: headwater-dns}
rules:
  - {apiGroups: [""], resources: [services, namespaces], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: headwater-dns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: headwater-dns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "headwater:dns"}]
YAML
    start kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$conf/controller-manager.kubeconfig" \
        --service-account-private-key-file="$pki/service-account.key" --root-ca-file="$pki/ca.crt" \
        --use-service-account-credentials --leader-elect=false
    start kube-scheduler "$bin/kube-scheduler" --kubeconfig="$conf/scheduler.kubeconfig" --leader-elect=false
    # A pod is refused while its namespace has no service account, which the controller manager makes.
    wait_for 60 "the default service account" admin get serviceaccount default
}

stop_control_plane() {
    local name
    for name in kube-scheduler kube-controller-manager kube-apiserver etcd; do
        stop "$name"
    done
}
