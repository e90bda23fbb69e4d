//! vcpu_kvm: filled in by its first commit.
