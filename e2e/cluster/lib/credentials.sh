# shellcheck shell=bash disable=SC2154  # common.sh has the names
# A certificate authority of this cluster's own, made anew with every `up`.

make_credentials() {
    local name names=kubernetes.default.svc.cluster.local
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=headwater-e2e-ca \
        -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
    openssl genrsa -out "$pki/service-account.key" 2048 2>/dev/null
    sign apiserver /CN=kube-apiserver \
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:$names,IP:$node_ip,IP:$api_service_ip"
    sign kubelet-client /O=headwater:kubelet-clients/CN=kube-apiserver-kubelet-client
    sign kubelet "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$node_ip"
    sign controller-manager /CN=system:kube-controller-manager
    sign scheduler /CN=system:kube-scheduler
    sign proxy /CN=system:kube-proxy
    sign dns /CN=headwater:dns
    sign admin /O=system:masters/CN=admin
    for name in kubelet controller-manager scheduler proxy dns; do
        write_kubeconfig "$conf/$name.kubeconfig" "$name"
    done
    write_kubeconfig "$state/kubeconfig" admin
}

# sign NAME SUBJECT [SUBJECT_ALT_NAMES]
sign() {
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" \
        -keyout "$pki/$1.key" -out "$pki/$1.csr" 2>/dev/null
    openssl x509 -req -days 365 -in "$pki/$1.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial \
        -out "$pki/$1.crt" -extfile <(
            echo extendedKeyUsage=clientAuth,serverAuth
            [[ -z ${3:-} ]] || echo "subjectAltName=$3"
        ) 2>/dev/null
}

# write_kubeconfig FILE NAME
write_kubeconfig() {
    (
        umask 077
        cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: headwater-e2e
    cluster: {server: "$server", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}
users:
  - name: $2
    user:
      client-certificate-data: $(base64 -w0 "$pki/$2.crt")
      client-key-data: $(base64 -w0 "$pki/$2.key")
contexts:
  - name: headwater-e2e
    context: {cluster: headwater-e2e, user: $2}
current-context: headwater-e2e
YAML
    )
}
