/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * 4-level and 5-level paging (SDM vol. 3, chapter 4) against an oracle that is written from the
 * manual: error code, CR2, what was read and stored, and the accessed and dirty bits of every level.
 */
#include "guest.h"

#include "control.h"
#include "long.h"
#include "matrix.h"
#include "probe.h"
#include "self.h"
#include "walk.h"
#include "window.h"

#define WALK_STEPS 400000UL /* with step=1 */
#define SELF_STEPS 50000UL

static void report(const char *what, struct tally *t)
{
	printf("%s: %lu accesses, %u failures\n", what, t->tried, t->failures);
	t->tried = 0;
}

int main(int argc, char **argv)
{
	static struct tally t;
	struct cpu has = { 0 };
	u64 levels = DEFAULT_levels, step = DEFAULT_step, churn = DEFAULT_churn,
	    exact = DEFAULT_exact;
	const struct param params[] = {
		{ "levels", &levels, 4, 5 },
		{ "step", &step, 1, 1UL << 24 },
		{ "churn", &churn, 0, 1000 },
		{ "exact", &exact, 0, 1 },
	};

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	cpu_features(&has);
	if (levels > (u64)has.levels)
		usage("this CPU has no five levels");
	has.levels = (int)levels;
	t.exact = exact;
	t.churn = (u32)churn;
	load_descriptor_tables(WINDOW_PAGE);
	probe_init(USER_AT, USER_STACK_TOP);
	enter_paging(build_tables((int)levels), (int)levels);
	load_descriptor_tables(window + LDT_AT);
	run_matrix(&t, &has, (u32)step);
	report("matrix", &t);
	run_walk(&t, &has, (u32)(WALK_STEPS / step));
	report("walk", &t);
	run_self(&t, &has, (u32)(SELF_STEPS / step));
	report("self", &t);
	run_canonical(&t, &has);
	report("canonical", &t);
	if (exact)
		run_control(&t, &has);
	finish(t.checksum, !t.failures);
}
