"""What runs in the guest, by the guest's own Python; `tests.vm.payload` brings it there."""
