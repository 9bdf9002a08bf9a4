"""The mutation gallery: bugs that KVM and the mm once had, each found by the laws of `--check`. See gallery.py."""
