"""E2B's template builds: what the SDKs' `Template.build` asks for, and what it is answered."""
