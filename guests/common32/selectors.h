/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The GDT of crt0.S, for C and assembly. */
#ifndef SELECTORS_H
#define SELECTORS_H

#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE 0x1b
#define USER_DATA 0x23
#define TSS_SELECTOR 0x28
#define SPARE_CODE 0x30
#define SPARE_DATA 0x38

#endif
