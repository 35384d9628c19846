"""The fault suite: real parts, broken on purpose. README.md says how it is built and used."""
