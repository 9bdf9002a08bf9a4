/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RAM above the image, found through the boot memory map and handed out from low to high.
 *
 * ram_alloc() is for the big arrays and never takes back; frames are 4 KiB pages with a free list
 * (last freed, first reused). Memory is identity mapped, so a frame's guest-physical address is
 * also a pointer to it. Contents are undefined unless said otherwise. Asking for more than there is
 * ends the guest with a message and exit value 2.
 */
#ifndef RAM_H
#define RAM_H

#include "boot.h"

void ram_init(const struct hvm_memmap_entry *map, u32 entries);

/* `align` is a power of two. */
void *ram_alloc(u64 bytes, u64 align);
u64 ram_left(void);

u64 frame_alloc(void);
u64 frame_alloc_zeroed(void);
void frame_free(u64 frame);

#endif
