# What `property_tests/mutants` uses of Cosmic Ray, which is installed in an environment of its own
# only.
