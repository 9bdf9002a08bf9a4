"""The oracle: random page tables and operations, done by the machine and by a flat model that has to agree.

layout      where things are, and the instructions
paging      how x86 reads tables            memory, model   what an access may do
bed         the machine                     operations      both do one
generate    random operations (scenarios, large: several that belong together)
run, shrink, case   episodes, and what is kept of one that fails
"""
