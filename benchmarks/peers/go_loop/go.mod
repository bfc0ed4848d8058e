module go_loop

go 1.19
