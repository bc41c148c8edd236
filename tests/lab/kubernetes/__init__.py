"""A real one-node Kubernetes in a whole node (see `whole_node`): `Cluster` starts all of it.

etcd, API server, controller manager, scheduler and a registered kubelet, as `tools/get-kubernetes` builds them, on the
lab's containerd. The cluster's DNS is the lab's own server, and one iptables rule stands in for kube-proxy.
"""
