/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What must not be loaded into control registers, and addresses that are none (SDM vol. 3, 2.5; vol. 1, 3.3.7.1). */
#ifndef CONTROL_H
#define CONTROL_H

#include "check.h"

void run_control(struct tally *t, const struct cpu *has);
void run_canonical(struct tally *t, const struct cpu *has);

#endif
