/* Stub: see tests/tflm_stub/README.md. */
#ifndef TFLM_STUB_SCHEMA_GENERATED_H
#define TFLM_STUB_SCHEMA_GENERATED_H

#include <cstdint>
#include <cstring>

namespace tflite {

/* The file itself, of which only the identifier is looked at. */
struct Model {
    const unsigned char *bytes() const { return reinterpret_cast<const unsigned char *>(this); }
    uint32_t version() const { return std::memcmp(bytes() + 4, "TFL3", 4) == 0 ? 3 : 0; }
};

inline const Model *GetModel(const void *file) { return static_cast<const Model *>(file); }

}  // namespace tflite

#endif
