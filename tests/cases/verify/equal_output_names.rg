// error: V008: two outputs are named `y`
graph(%x : f32[2]) {
  %y = relu(%x)
  return %y, %x as %y
}
