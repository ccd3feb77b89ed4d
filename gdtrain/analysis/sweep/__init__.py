"""Many runs of one problem, over the settings of a grid."""
