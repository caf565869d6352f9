"""What stock gRPC clients see of `prism serve`: one check, one promise."""
