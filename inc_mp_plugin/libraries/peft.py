"""Private parts of PEFT; last checked with 0.21.2."""

# How a layer casts what it gives its adapter, as a pattern of its code; 0.13 casts by `.to`. 0.21.2.
CAST = r"_cast_input_dtype\(\w+, "
