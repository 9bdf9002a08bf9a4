"""What tools/bench measures, one module per kind of comparison."""
