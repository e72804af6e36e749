"""The benchmark behind `make bench`: gateways beside each other on one core, load and upstream on another."""
