"""Music with exactly known beats: scores and grooves, performed and rendered (`musicldm data fetch score-beats`)."""
