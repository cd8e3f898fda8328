"""The experiments of the papers, on a folder that `inc-mp tune` wrote."""
