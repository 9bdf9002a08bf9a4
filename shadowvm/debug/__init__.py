"""Looking at a machine while it stands still: stops, positions, going back, and what stands where."""
