"""The API for users: Docker's, and skep's own words beside it. The only package of the managers that speaks HTTP."""
