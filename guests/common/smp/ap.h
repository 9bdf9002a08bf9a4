/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an AP finds below 1 MiB when it starts. For C and assembly. */
#ifndef SMP_AP_H
#define SMP_AP_H

/* The page that the start-up IPI names, free once main() runs; then a struct ap_boot. */
#define AP_PAGE		0x10000
#define AP_BOOT		(AP_PAGE + 0xf00)

#define AP_BOOT_CR0	(AP_BOOT + 0)
#define AP_BOOT_CR3	(AP_BOOT + 4)
#define AP_BOOT_CR4	(AP_BOOT + 8)
#define AP_BOOT_EFER	(AP_BOOT + 12)
#define AP_BOOT_STACK	(AP_BOOT + 16)
#define AP_BOOT_CPU	(AP_BOOT + 24)

#endif
