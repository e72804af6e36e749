"""What keys, limits and periods mean, without a gateway."""
