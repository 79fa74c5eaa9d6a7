// Which of these ports of an address take a connection: ADDRESS PORT...
const [address, ...ports] = process.argv.slice(1);
const reach = (port) => new Promise((done) => {
  const socket = require('node:net').connect({ host: address, port, timeout: 10000 });
  const end = (taken) => {
    socket.destroy();
    done(taken);
  };
  socket.on('connect', () => end(true)).on('error', () => end(false)).on('timeout', () => end(false));
});
Promise.all(ports.map(reach)).then((taken) => console.log(ports.filter((_, index) => taken[index]).join(' ')));
