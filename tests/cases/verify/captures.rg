// error: line 3, column 3: V007: 2 captures, but 1 operands
graph(%flag : bool[]) {
  %y = if(%flag) {num_captures = 2} body(%a : f32[2], %b : f32[2]) {
    return %a as %then
  }
  body(%a : f32[2], %b : f32[2]) {
    return %b as %else
  } : f32[2]
  return %y
}
