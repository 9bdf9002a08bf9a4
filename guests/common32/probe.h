/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One access at CPL 0 or 3, and the page fault that it takes. */
#ifndef PROBE_H
#define PROBE_H

#include "types.h"

#define PF_PRESENT 1u
#define PF_WRITE 2u
#define PF_USER 4u
#define PF_RSVD 8u
#define PF_FETCH 16u
#define NO_FAULT 0xffffffffu

enum access { READ, WRITE, FETCH };

/* Every page that is probed holds this: a return, whatever the offset. */
#define PROBE_PATTERN 0xc3c3c3c3u

/* Takes #PF, TRAP_CALL and TR. `user` is where _user_start.._user_end is mapped for CPL 3, `esp` a stack there. */
void probe_init(u32 user, u32 esp);

/* Read, write or call `gva`: the error code, or NO_FAULT. CR2 is checked, too. */
u32 probe(u32 gva, enum access access, bool from_user);

#endif
