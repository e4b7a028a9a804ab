// error: line 3, column 3: V004: operand `b` is missing
graph(%x : f32[2]) {
  %y = where(%x, %x, _) : f32[2]
  return %y
}
