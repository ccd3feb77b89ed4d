"""What tests share: disks, ranks, generated input, real runs that are killed."""
