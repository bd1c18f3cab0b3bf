// The words of a template's code: what the frontend writes and the executor reads.
//
// A program is a sequence of records. A record is
//   [op index : 24 | flags : 8] [argument count : 16 | output count : 16]  arguments...  outputs...
// An argument or output starts with a head word [tag : 8 | payload : 24] and takes its numbers, in order, from the
// parameter array: every integer and float of the program is a parameter, everything else is structure.
#pragma once

#include <cstdint>

namespace genie::wire {

inline constexpr uint32_t kProgramFormat = 1;

enum class SlotKind : uint8_t {
  kExisting = 0,   // lives before the fragment; bound by the invocation
  kCreated = 1,    // born in the fragment and lives on; bound by the invocation
  kTransient = 2,  // born and gone within the fragment; not bound
};

enum class Tag : uint8_t {
  kNone = 0,
  kTensor = 1,  // payload: TensorBits; next word: slot. Parameters: sizes, [strides], [offset]
  kUndefinedTensor = 2,
  kScalarTensor =
      3,     // 0-dim CPU tensor by value. payload: dtype | kWrapped. Parameters: 2 (as kComplex), or 1 for the others
  kInt = 4,  // 1 parameter
  kDouble = 5,       // 1 parameter: the bits
  kComplex = 6,      // 2 parameters: the bits of the real and the imaginary part
  kBool = 7,         // payload: 0 or 1
  kString = 8,       // payload: string index
  kIntConst = 9,     // payload: dtype, layout, memory format
  kIntList = 10,     // payload: length. That many parameters
  kDoubleList = 11,  // payload: length. That many parameters
  kBoolList = 12,    // payload: length; next words: 32 bits each
  kList = 13,        // payload: length; that many arguments follow (tensors, None, scalars)
  kDevice = 14,      // the device that runs the program
  kGenerator = 15,   // payload: generator number in the session (0: the device's default)
  // Outputs.
  kFresh = 16,  // payload: TensorBits; next word: slot. Parameters: sizes, [strides]
  kAlias = 17,  // payload: index of the argument that is returned (in-place, out=)
  kUndefinedOut = 18,
  kListOut = 19,   // payload: length; that many outputs follow
  kReported = 20,  // next word: slot. Shape unknown to the client: metadata goes back in the completion
  kIgnored = 21,   // not a tensor
  kResized =
      22,  // as kAlias, and what the argument looks like then. Next word: TensorBits. Parameters: sizes, [strides]
};

// Payload of kTensor and kFresh.
struct TensorBits {
  static constexpr uint32_t kDtypeShift = 0;         // 8 bits: c10::ScalarType
  static constexpr uint32_t kRankShift = 8;          // 8 bits
  static constexpr uint32_t kContiguous = 1U << 16;  // no strides follow
  static constexpr uint32_t kZeroOffset = 1U << 17;  // no offset follows
  static constexpr uint32_t kConj = 1U << 18;
  static constexpr uint32_t kNeg = 1U << 19;
};
inline constexpr uint32_t kWrapped = 1U << 8;  // kScalarTensor: a wrapped Python/C++ number

inline constexpr uint32_t kMaxRank = 64;
inline constexpr uint32_t kMaxListLength = 1U << 20;
inline constexpr uint32_t kMaxNesting = 4;

constexpr uint32_t head(Tag tag, uint32_t payload) { return (payload << 8) | static_cast<uint32_t>(tag); }
constexpr Tag tag_of(uint32_t word) { return static_cast<Tag>(word & 0xFFU); }
constexpr uint32_t payload_of(uint32_t word) { return word >> 8; }

}  // namespace genie::wire
