/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Everything a guest's main.c needs from the runtime. */
#ifndef GUEST_H
#define GUEST_H

#include "boot.h"
#include "cpu.h"
#include "hash.h"
#include "idt.h"
#include "paging.h"
#include "params.h"
#include "ram.h"
#include "serial.h"
#include "string.h"
#include "types.h"
#include "user.h"

#endif
