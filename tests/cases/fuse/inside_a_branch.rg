// pass: fuse
symbol B

graph(%x : f32[B, 8], %p : bool[]) {
  %y = if(%p, %x) {num_captures = 1} body(%x : f32[B, 8]) {
    %s = sigmoid(%x)
    %t = mul(%x, %s)
    return %t as %then
  }
  body(%x : f32[B, 8]) {
    return %x as %else
  }
  return %y
}

// ----
module "model"
symbol B

graph(%x : f32[B, 8], %p : bool[]) {
  %y = if(%p, %x) {num_captures = 1} body(%x : f32[B, 8]) {
    %t = swish(%x) : f32[B, 8]
    return %t as %then
  }
  body(%x : f32[B, 8]) {
    return %x as %else
  } : f32[B, 8]
  return %y
}
