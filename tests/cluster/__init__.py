"""The manifests on a real one-node Kubernetes, applied with kubectl."""
