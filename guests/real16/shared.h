/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What real.S and main.c agree on. All addresses are physical. */
#ifndef SHARED_H
#define SHARED_H

#define REAL_BASE 0x10000 /* real.S runs here, CS = DS = 0x1000 */
#define REAL_SEGMENT 0x1000
#define REAL_STACK 0xfff0
#define RESULTS 0x20000 /* 32-bit words, in the order of the questions in main.c */
#define RESULTS_SEGMENT 0x2000
#define DATA_SEGMENT 0x3000 /* 64 KiB to play in */
#define DATA_BASE 0x30000
#define HIGH_WORD 0x400000 /* what unreal mode reaches and real mode does not */

#endif
