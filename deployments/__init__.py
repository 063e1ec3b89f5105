"""Serves: the wire protocol and the Ray Serve drivers of the planner's state machines."""
