// Status and Result: how every layer below the torch edge reports failure.
//
// Purpose: an error is a value. A Status is one register wide: OK and bare codes are inline, an error that
//   carries a text owns a reference-counted heap record, made on cold paths only.
// Thread-safety: distinct Status objects may be used from distinct threads; copies share an immutable record.
// Ownership: value type; the text lives as long as any copy.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#define GENIE_API [[gnu::visibility("default")]]

namespace genie {

// Codes are stable: scripts and peers see them. Grouped by what has to be rebuilt after one.
enum class Errc : uint16_t {
  kOk = 0,
  // Not errors: try again, or wait.
  kAgain = 1,
  kInProgress = 2,
  // The operation failed; the endpoint and the device live on.
  kInvalidArgument = 16,
  kOutOfRange = 17,
  kNotFound = 18,
  kAlreadyExists = 19,
  kUnsupported = 20,
  kTimedOut = 21,
  kCancelled = 22,
  kQuotaExceeded = 23,
  kOutOfMemory = 24,
  kStale = 25,  // a handle, key or version of an earlier generation
  kPermission = 26,
  kOpFailed = 27,  // an operator raised an error on its node
  kPoisoned = 28,  // a storage whose producing operation failed
  kBusy = 29,      // somebody else still uses it
  kConfig = 30,    // a configuration line or flag is wrong
  // The endpoint must be rebuilt.
  kDisconnected = 48,
  kUnreachable = 49,
  kProtocol = 50,  // a malformed message
  kVersionMismatch = 51,
  kUnauthenticated = 52,
  // The device or the process must be rebuilt.
  kDeviceLost = 64,
  kIo = 65,
  kInternal = 66,
};

// "kTimedOut" -> "timed out"; never null.
GENIE_API const char* errc_name(Errc code) noexcept;

class [[nodiscard]] GENIE_API Status {
 public:
  Status() noexcept = default;  // OK
  Status(Errc code) noexcept    // NOLINT(google-explicit-constructor): `return Errc::kAgain;` is the idiom
      : rep_(code == Errc::kOk ? 0 : (static_cast<uintptr_t>(code) << 1) | 1U) {}
  Status(Errc code, std::string text);

  Status(const Status& other) noexcept : rep_(other.rep_) { retain(); }
  Status(Status&& other) noexcept : rep_(std::exchange(other.rep_, 0)) {}
  Status& operator=(const Status& other) noexcept {
    Status copy(other);
    std::swap(rep_, copy.rep_);
    return *this;
  }
  Status& operator=(Status&& other) noexcept {
    std::swap(rep_, other.rep_);
    return *this;
  }
  ~Status() { release(); }

  bool ok() const noexcept { return rep_ == 0; }
  explicit operator bool() const noexcept { return ok(); }
  Errc code() const noexcept;
  // What failed, where and what to do; empty for a bare code.
  std::string_view text() const noexcept;
  // "timed out: <text>".
  std::string to_string() const;

 private:
  struct Record;
  bool has_record() const noexcept { return rep_ != 0 && (rep_ & 1U) == 0; }
  void retain() noexcept;
  void release() noexcept;

  uintptr_t rep_ = 0;
};
static_assert(sizeof(Status) == sizeof(void*));

// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<1>, std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : state_(std::in_place_index<0>, std::move(status)) {}  // NOLINT(google-explicit-constructor)
  Result(Errc code) : Result(Status(code)) {}                                   // NOLINT(google-explicit-constructor)

  bool ok() const noexcept { return state_.index() == 1; }
  explicit operator bool() const noexcept { return ok(); }
  // OK when there is a value.
  Status status() const { return ok() ? Status() : std::get<0>(state_); }
  Errc code() const { return ok() ? Errc::kOk : std::get<0>(state_).code(); }

  T& value() & { return std::get<1>(state_); }
  const T& value() const& { return std::get<1>(state_); }
  T&& value() && { return std::get<1>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<Status, T> state_;
};

// What the public API throws. what() says what failed, where, and what to do.
class GENIE_API Error : public std::runtime_error {
 public:
  explicit Error(Status status);
  const Status& status() const noexcept { return status_; }

 private:
  Status status_;
};

}  // namespace genie

// Returns early with the Status of a failed expression.
#define GENIE_TRY(expression)                                                        \
  do {                                                                               \
    if (::genie::Status genie_try_status_ = (expression); !genie_try_status_.ok()) { \
      return genie_try_status_;                                                      \
    }                                                                                \
  } while (false)
