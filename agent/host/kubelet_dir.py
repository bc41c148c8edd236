"""What a kubelet leaves in its folder, by which one that does not run now is known to belong to the node.

An empty folder proves nothing: mounts, images and test suites make it too.
"""

from pathlib import Path

FILES = ("config.yaml", "kubeconfig", "cpu_manager_state")
"""kubeadm and the installers write the first two, every kubelet the third."""
FOLDERS = ("pki", "pods")
"""A kubelet keeps its certificates and its pods' folders there."""


def content(directory: Path) -> Path | None:
    """Return something a kubelet has left in this folder, None without it.

    What may not be read counts: an unprivileged user sees that a kubelet's folder is there and no more.
    """
    for name in (*FILES, *FOLDERS):
        path = directory / name
        try:
            if any(path.iterdir()) if name in FOLDERS else path.stat().st_size:
                return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            return path
    return None
