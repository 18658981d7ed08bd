"""The manager: decides. Nothing here touches a container."""
