//go:build tools

// Package tools pins the etcd of the e2e cluster.
package tools

import _ "go.etcd.io/etcd/server/v3"
