/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ram.h"

#include "string.h"

#define IDENTITY_END (1UL << 32)

extern u8 _image_start[], _image_end[];

static u64 next, end;
static u64 free_frames;

void ram_init(const struct hvm_memmap_entry *map, u32 entries)
{
	u64 image = (u64)_image_end;

	for (u32 i = 0; i < entries; i++) {
		const struct hvm_memmap_entry *e = &map[i];

		if (e->type != HVM_MEMMAP_RAM || e->addr > (u64)_image_start || e->addr + e->size < image)
			continue;
		next = page_align(image);
		end = min_u64(e->addr + e->size, IDENTITY_END) & ~(PAGE_SIZE - 1);
		return;
	}
	usage("the memory map has no RAM around the image");
}

u64 ram_left(void)
{
	return end - next;
}

void *ram_alloc(u64 bytes, u64 align)
{
	u64 start = (next + align - 1) & ~(align - 1);

	if (start > end || bytes > end - start)
		usage("not enough memory: %lu KiB more needed, %lu KiB free",
		      DIV_ROUND_UP(bytes, KIB), ram_left() / KIB);
	next = page_align(start + bytes);
	return (void *)start;
}

u64 frame_alloc(void)
{
	u64 frame = free_frames;

	if (!frame)
		return (u64)ram_alloc(PAGE_SIZE, PAGE_SIZE);
	free_frames = *(u64 *)frame;
	return frame;
}

u64 frame_alloc_zeroed(void)
{
	u64 frame = frame_alloc();

	memset((void *)frame, 0, PAGE_SIZE);
	return frame;
}

void frame_free(u64 frame)
{
	*(u64 *)frame = free_frames;
	free_frames = frame;
}
