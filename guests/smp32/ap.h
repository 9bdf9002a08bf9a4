/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where an AP starts, for C and assembly. */
#ifndef AP_H
#define AP_H

#define AP_PAGE 0x10000

#endif
