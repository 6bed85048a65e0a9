"""The runtime beneath the faces: roles, messages, and the pure logic that drives them."""
