// Names of what Python calls: each function of this folder is there once per path, as ava_linear_amx.
#pragma once

#define AVA_JOIN(name, path) name##_##path
#define AVA_NAME(name, path) AVA_JOIN(name, path)
#define AVA_ENTRY(name) AVA_NAME(name, AVA_PATH)
